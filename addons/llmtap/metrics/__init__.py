"""Metrics: what the gateway counts and exports, and `MetricsRecorder` for services of your own (it needs no mitmproxy)."""

from llmtap.metrics.gateway import GatewayMetrics
from llmtap.metrics.recorder import MetricsRecorder, RecordedRequest

__all__ = ["GatewayMetrics", "MetricsRecorder", "RecordedRequest"]
