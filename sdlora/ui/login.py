"""The login page, which reports waiting times as Gradio's own form does not, and the limit on wrong passwords."""

import ipaddress
import time
from collections.abc import Callable

from sdlora.ui.host_policy import parse_address

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>sdlora: log in</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
  body { display: grid; place-items: center; min-height: 90vh; margin: 0; }
  form { display: grid; gap: 0.75rem; width: min(20rem, 90vw); }
  h1 { margin: 0; font-size: 1.25rem; }
  label { display: grid; gap: 0.25rem; }
  input, button { font: inherit; padding: 0.5rem 0.75rem; border: 1px solid #8888; border-radius: 0.5rem; }
  button { color: #fff; background: #4f46e5; border: 0; cursor: pointer; }
  [role=alert] { min-height: 1.5em; margin: 0; color: light-dark(#b91c1c, #fca5a5); }
</style>
<form method="post" action="login">
  <h1>sdlora</h1>
  <label>Name <input name="username" autocomplete="username" required autofocus></label>
  <label>Password <input name="password" type="password" autocomplete="current-password" required></label>
  <button>Log in</button>
  <p role="alert"></p>
</form>
<script>
  document.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const message = document.querySelector("[role=alert]");
    message.textContent = "";
    try {
      const answer = await fetch("login", {method: "POST", body: new FormData(event.target)});
      if (answer.ok) location.reload();
      else message.textContent = answer.status === 429 ? await answer.text() : "Wrong name or password.";
    } catch {
      message.textContent = "The server does not answer; is it still running?";
    }
  });
</script>
"""


TRIES, WAIT_SECONDS, REMEMBERED = 5, 60.0, 10_000
"""Wrong passwords before an address has to wait, seconds to wait, and addresses that are remembered."""


class Throttle:
    """Counts wrong passwords by address. A try counts as wrong until it succeeds, so parallel tries gain nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._tries: dict[str, tuple[int, float]] = {}

    def seconds_to_wait(self, address: str) -> int:
        """Return the seconds until ``address`` may try again; 0 counts as a try."""
        now = self._clock()
        count, last = self._tries.pop(address, (0, now))
        if now - last >= WAIT_SECONDS:
            count = 0
        if count < TRIES:
            count, last = count + 1, now
            self._tries[address] = (count, last)
            for old in list(self._tries)[:-REMEMBERED]:
                del self._tries[old]
            return 0
        self._tries[address] = (count, last)
        return max(1, round(WAIT_SECONDS - (now - last)))

    def reset(self, address: str) -> None:
        """Forget the tries of ``address``, after a right password."""
        self._tries.pop(address, None)


def client_network(address: str) -> str:
    """Return what counts as one address: for IPv6, the network of a household."""
    found = parse_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found or address)
