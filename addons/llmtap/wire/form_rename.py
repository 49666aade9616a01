"""The field `model` of a form, changed while the form passes. Everything else goes through as it came, at once but for the few
bytes that may begin a delimiter."""

from __future__ import annotations

from llmtap.wire.form import MAX_HEAD, MAX_VALUE, name_of


class FormRename:
    """A callable for pieces of a form, `b""` at its end. Until `model` is set nothing is changed."""

    def __init__(self, boundary: bytes) -> None:
        self.model: str | None = None
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")  # the first delimiter may stand at the very beginning
        self._padding = 2  # of it, not yet left out again
        self._in_head = False
        self._in_model = False
        self._through = False

    def __call__(self, data: bytes) -> bytes:
        if self._through:
            return data
        out = bytearray()
        if self.model is None or not data:
            self._pass_all(out, data)
        else:
            self._buffer += data
            while not self._through and (self._head(out) if self._in_head else self._content(out)):
                pass
        if self._padding:
            left_out = min(self._padding, len(out))
            del out[:left_out]
            self._padding -= left_out
        return bytes(out)

    def _pass_all(self, out: bytearray, data: bytes = b"") -> None:
        """Nothing is looked for any more."""
        out += self._buffer
        out += data
        self._buffer.clear()
        self._through = True

    def _content(self, out: bytearray) -> bool:
        buffer, size = self._buffer, len(self._delimiter)
        at = buffer.find(self._delimiter)
        if at < 0 or len(buffer) < at + size + 2:
            if not self._in_model:
                keep = len(buffer) - at if at >= 0 else size
                self._emit(out, max(0, len(buffer) - keep))
            elif len(buffer) > MAX_VALUE + size:
                self._pass_all(out)
            return False
        behind = bytes(buffer[at + size : at + size + 2])
        if behind not in (b"--", b"\r\n") and behind[:1] not in (b" ", b"\t"):
            self._emit(out, at + 1)  # some other text that begins the same
            return True
        if self._in_model and at > MAX_VALUE:
            self._pass_all(out)
            return False
        if self._in_model:
            out += (self.model or "").encode()
            del buffer[:at]
            self._pass_all(out)
            return False
        self._emit(out, at + size)
        if behind == b"--":
            self._pass_all(out)
            return False
        self._in_head = True
        return True

    def _head(self, out: bytearray) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEAD:
            if len(self._buffer) > MAX_HEAD:
                self._pass_all(out)
            return False
        self._in_model = name_of(bytes(self._buffer[:end])) == "model"
        self._in_head = False
        self._emit(out, end + 4)
        return True

    def _emit(self, out: bytearray, size: int) -> None:
        out += self._buffer[:size]
        del self._buffer[:size]
