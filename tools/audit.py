"""`make audit`: looks the pinned packages up in PyPI's advisories.

Exit status 1 if one is known to be vulnerable. Packages without an answer are reported, and are
no failure: not every machine reaches PyPI.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

_PINS = Path(__file__).parent.parent / "constraints.txt"
_OPTIONS = ("--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json")
_NUM_NAMED = 5


def main() -> int:
    """Audit and report; return the exit status."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(_PINS), *_OPTIONS]
    answer = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = msgspec.json.decode(answer.stdout)["dependencies"]
    except msgspec.DecodeError:
        reason = answer.stderr.strip().rpartition("\n")[2]
        print(f"NOT AUDITED: {reason}")
        return 0
    return report(packages)


def report(packages: list[dict[str, Any]]) -> int:
    """Print pip-audit's answer about the packages; return the exit status."""
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    vulnerable = [package for package in packages if package.get("vulns")]
    for package in vulnerable:
        for finding in package["vulns"]:
            fixed = ", ".join(finding["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {finding['id']}, fixed in {fixed}")
    print(f"{len(packages) - len(unknown)} packages audited, {len(vulnerable)} vulnerable")
    if unknown:
        names = ", ".join(unknown[:_NUM_NAMED]) + (", …" if len(unknown) > _NUM_NAMED else "")
        print(f"NOT AUDITED: {len(unknown)} packages without an answer from PyPI: {names}")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
