"""Measure the audit: python scripts/measure_audit.py {recall,speed,scale} --help"""

if __name__ == "__main__":
    from argparse import Namespace

    import _root  # noqa: F401
    from _bench import report

    from data.audit.measure import main

    main(keep=lambda name, numbers: report(f"audit_{name}", numbers, Namespace(quick=False, out=True)))
