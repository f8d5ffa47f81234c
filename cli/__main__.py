"""`python -m cli COMMAND`."""

import sys

from cli import up

_USAGE = "usage: python -m cli up    start everything here, in the foreground"


def main(arguments: list[str]) -> int:
    if arguments == ["up"]:
        return up.main()
    print(_USAGE, file=sys.stderr)
    return 0 if arguments in (["-h"], ["--help"]) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
