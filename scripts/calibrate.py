"""Fit calibration and thresholds on held-out predictions, or apply them: python scripts/calibrate.py --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from fusion.calibrate import main

    main()
