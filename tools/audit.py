"""`make audit`: look the pinned packages up in PyPI's advisories.

Exit status 1 when one of them is known to be vulnerable. What could not be looked up is said, and
is no failure: not every machine reaches PyPI.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

_PINS = Path(__file__).parent.parent / "constraints.txt"
_NUM_NAMED = 5


def main() -> int:
    """Print what was found; the exit status."""
    answer = subprocess.run(
        [sys.executable, "-m", "pip_audit", "-r", str(_PINS), "--no-deps", "--disable-pip",
         "--progress-spinner", "off", "--format", "json"],
        capture_output=True,
        text=True,
    )  # fmt: skip
    try:
        packages = msgspec.json.decode(answer.stdout)["dependencies"]
    except msgspec.DecodeError:
        reason = answer.stderr.strip().rpartition("\n")[2]
        print(f"NOT AUDITED: {reason}")
        return 0
    return report(packages)


def report(packages: list[dict[str, Any]]) -> int:
    """Print what pip-audit says of the packages; the exit status."""
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    vulnerable = [package for package in packages if package.get("vulns")]
    for package in vulnerable:
        for finding in package["vulns"]:
            mended = ", ".join(finding["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {finding['id']}, mended in {mended}")
    print(f"{len(packages) - len(unknown)} packages audited, {len(vulnerable)} vulnerable")
    if unknown:
        names = ", ".join(unknown[:_NUM_NAMED]) + (", …" if len(unknown) > _NUM_NAMED else "")
        print(f"NOT AUDITED: {len(unknown)} packages that PyPI did not answer for: {names}")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
