"""Check installed versions for known vulnerabilities: ``python tools/audit.py LIST``, LIST as from ``pip freeze``.

pip-audit asks PyPI. Where it is not installed or cannot ask, that is said, and is no failure; exit code 1 means that
one is known.
"""

import json
import subprocess
import sys
from pathlib import Path

SECONDS = 30


def ask(listed: Path) -> str:
    """pip-audit's answer as JSON; a sentence where there is none."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(listed), "--no-deps", "--disable-pip", "--timeout", "5"]
    try:
        asked = subprocess.run([*command, "-f", "json"], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"no answer in {SECONDS} s"
    return asked.stdout or (asked.stderr.strip() or "no answer").splitlines()[-1][:300]


def judge(answer: str) -> tuple[int, list[str]]:
    """The exit code, and what is to be said."""
    try:
        audited = json.loads(answer)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return 0, [f"pip-audit could not answer: {answer}"]
    known = [
        f"{each['name']} {each['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'none yet'}"
        for each in audited
        for flaw in each.get("vulns", ())
    ]
    skipped = [each["name"] for each in audited if "skip_reason" in each]
    notes = [f"pip-audit could not answer for {len(skipped)} of {len(audited)} packages."] if skipped else []
    return int(bool(known)), [*known, *notes, *([] if known or skipped else ["pip-audit knows of no vulnerability."])]


if __name__ == "__main__":
    code, lines = judge(ask(Path(sys.argv[1])))
    print("\n".join(lines))
    sys.exit(code)
