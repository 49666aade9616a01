"""`mitmdump -s addons/gateway.py`: llmtap as a mitmproxy script. All of it lives in the package beside this file."""

from llmtap.chain import gateway

addons = [gateway()]
