"""Can this machine run the project? python scripts/doctor.py [--run_dir runs/x] --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from fusion.doctor.report import main

    main()
