"""Being stopped from outside, by Ctrl-C or SIGTERM, without losing the step at work."""

import signal
import threading
import time


class Signals:
    """While open, a first Ctrl-C or SIGTERM is noted in `received`; another a second later interrupts at once."""

    def __enter__(self):
        self.received, self.before = 0.0, {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._note)
        return self

    @staticmethod
    def noted() -> bool:
        """Whether the innermost open one was told to stop already, so that telling it again would not let it save."""
        return bool(getattr(getattr(signal.getsignal(signal.SIGINT), "__self__", None), "received", 0.0))

    def _note(self, number, frame):
        if self.received and time.monotonic() - self.received > 1:
            raise KeyboardInterrupt
        self.received = self.received or time.monotonic()

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)
