"""Metrics: what the gateway counts and exports, and `MetricsRecorder` for services of your own (it needs no mitmproxy)."""

from llmtap.metrics.gateway import GatewayMetrics
from llmtap.metrics.recorded import RecordedRequest
from llmtap.metrics.recorder import MetricsRecorder

__all__ = ["GatewayMetrics", "MetricsRecorder", "RecordedRequest"]
