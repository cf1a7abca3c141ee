"""What is shown to whom has not logged in: one page of our own, as Gradio's form says nothing of a wait."""

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
    const said = document.querySelector("[role=alert]");
    said.textContent = "";
    try {
      const answer = await fetch("login", {method: "POST", body: new FormData(event.target)});
      if (answer.ok) location.reload();
      else said.textContent = answer.status === 429 ? await answer.text() : "Wrong name or password.";
    } catch {
      said.textContent = "The server does not answer; is it still running?";
    }
  });
</script>
"""


TRIES, WAIT_SECONDS, REMEMBERED = 5, 60.0, 10_000
"""Wrong passwords from an address before it has to wait, how long, and how many addresses are remembered."""


class Throttle:
    """Counts wrong passwords by address. Every try counts as wrong until it was right, so many at once gain nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._tries: dict[str, tuple[int, float]] = {}

    def seconds_to_wait(self, address: str) -> int:
        """Seconds until ``address`` may try again; 0 if it may now, which is then counted."""
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
        """Forget the tries of ``address``: its password was right, or none was compared."""
        self._tries.pop(address, None)


def client_network(address: str) -> str:
    """What counts as one address: of IPv6, the network that one household has."""
    found = parse_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found or address)
