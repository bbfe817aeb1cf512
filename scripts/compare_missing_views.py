"""mAP of finished runs when views are missing: python scripts/compare_missing_views.py --run_dir runs/x"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from fusion.missing_report import main

    main()
