"""The two UNIX sockets between a gateway and the launcher that runs it: their names in the folder both are told of."""

from __future__ import annotations

#: the launcher's management API, HTTP; the gateway forwards what comes for it
MANAGEMENT = "management.sock"
#: header of a forwarded request: the name of the key it came with, where keys are demanded
CLIENT_HEADER = "x-llmtap-client"
#: what launcher and gateway tell each other: JSON objects, one a line. The launcher listens, every gateway connects
CONTROL = "control.sock"
#: longest line of the latter (a list of 10,000 requests in flight has about 4 MB)
MAX_LINE = 64 << 20
