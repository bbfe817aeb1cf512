"""Do heat maps point at the findings? python scripts/pointing_game.py --run_dir runs/demo [--num_studies 50]

Plays `fusion.pointing` on the test images of a trained phantom run, whose findings' places are known, and keeps the
table in scripts/results/pointing_game.json (only when all test studies were played).
"""

from argparse import ArgumentParser
from pathlib import Path

if __name__ == "__main__":
    import _root  # noqa: F401
    from _experiment import keep

    from data.runs import run_command
    from fusion.pointing import play, table_lines

    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run_dir", type=Path, default=Path("runs/demo"), help="a finished run on the phantom")
    parser.add_argument("--name", default="fusion", help="stage two's folder in the run")
    parser.add_argument("--split", default="test", choices=["val", "test"], help="val: to choose between methods")
    parser.add_argument("--num_studies", type=int, default=0, help="studies of the split, evenly spaced; 0: all")
    parser.add_argument("--replicates", type=int, default=1000, help="patient bootstrap replicates behind intervals")
    options = parser.parse_args()

    def main() -> None:
        """Play, print, keep."""
        result = play(**vars(options))
        print("\n".join(table_lines(result)))
        if options.split == "test" and not options.num_studies:
            keep("pointing_game", result)

    run_command(main)
