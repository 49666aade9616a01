"""Metrics: what the gateway counts (`gateway`), kept cheaply (`families`, `buckets`)."""

from llmtap.metrics.buckets import token_buckets
from llmtap.metrics.gateway import GatewayMetrics

__all__ = ["GatewayMetrics", "token_buckets"]
