"""`python -m bench`: runs the benchmarks, prints their tables, writes bench/results.

python -m bench                          everything
python -m bench counter --streams 8 64   the counter model against llama.cpp's own server
python -m bench ttft                     time to first token of an idle service
python -m bench requests                 short requests of 16 clients
python -m bench burst                    64 requests at the same moment
python -m bench demo                     the demo model
python -m bench prefill                  running streams while a long prompt is read
python -m bench growth                   1, 2, 4 ... 256 streams
python -m bench plot FILE.json           draws the result of growth as docs/growth.png
python -m bench relay                    one web process without an engine
python -m bench replicas                 two replicas of the demo model against one
python -m bench loading                  time to ready against starting llama.cpp's server
python -m bench churn                    requests while models are loaded and unloaded
python -m bench faults                   what streams see of each fault, five rounds of it
python -m bench memory                   memory of a request, queued and running
python -m bench metrics                  one web process with its metrics and without

The first seven and relay also measure another version in the same turns:
python -m bench ttft requests relay --against ../llmis-before
"""

import argparse
import signal
import sys
from pathlib import Path

from bench import checkout, plot, report
from bench.commands import COMMANDS, Session
from bench.measure import Stalled
from bench.processes import machine_facts
from bench.scenarios import Effort

_QUICK = Effort(rounds=1, tries=1, patience_s=1.0)
_PATIENCE_S = 10.0
"""For the machine to become quiet, for each try."""


def main() -> int:
    if sys.argv[1:2] == ["plot"]:
        return plot.main(sys.argv[2:])
    session = _session()
    # SIGTERM ends this process as Ctrl-C does, so that every child is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tables, status = [], 0
    for name in session.arguments.names or COMMANDS:
        session.say(f"{name} ...")
        try:
            tables.append(COMMANDS[name](session))
        except Stalled as exc:
            # The results of the others are kept.
            tables.append(f"{name}: stalled: {exc}")
            session.content[name] = {"stalled": str(exc)}
        except RuntimeError as exc:
            tables.append(f"{name}: failed: {exc}")
            session.content[name], status = {"failed": str(exc)}, 1
    print("\n" + "\n\n".join(tables))
    if not session.is_quick:
        path = report.write("-".join(session.arguments.names) or "all", session.content)
        print(f"\nwritten: {path}")
    return status


def _session() -> Session:
    arguments = _arguments()
    effort = Effort(arguments.rounds, arguments.tries, _PATIENCE_S * arguments.tries)
    if arguments.quick:
        effort = _QUICK
    session = Session(arguments, effort)
    facts = machine_facts()
    session.content |= {"machine": facts, "rounds": effort.rounds}
    if arguments.against is not None:
        try:
            session.against = checkout.other(arguments.against)
        except ValueError as exc:
            raise SystemExit(f"--against: {exc}") from exc
        session.content["against"] = session.against.facts()
        # The file tells the commit; where its folder was is of no use to a reader.
        facts["command"] = str(facts["command"]).replace(
            str(arguments.against), session.against.label
        )
    return session


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMMANDS)}")
    parser.add_argument("--streams", type=int, nargs="+", help="streams at the same time")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each server (default 5)")
    parser.add_argument(
        "--tries",
        type=int,
        default=3,
        help="runs of a load while the machine is busy with other work (default 3)",
    )
    parser.add_argument("--rates", type=int, nargs="+", help="tokens/s offered to the relay")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="PATH",
        help="another checkout, with its own .venv, to be measured in the same turns",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short round of everything; writes no file"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(COMMANDS)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    return arguments


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
