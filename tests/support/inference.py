"""Waiting for jobs of the inference process."""

import time

PATIENCE = 120


def wait_for_job(creator, number, check=lambda ticket: ticket.ended):
    """The ticket as soon as ``check`` holds, and the states passed on the way."""
    seen = []
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        ticket = creator.status(number)
        if ticket.state not in seen:
            seen.append(ticket.state)
        if check(ticket):
            return ticket, seen
        time.sleep(0.01)
    raise AssertionError((ticket, (creator.data_dir / "creations" / "process.log").read_text()[-2000:]))
