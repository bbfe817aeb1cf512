"""Views of images that come without one, from cached features: python scripts/classify_views.py --run_dir runs/x"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from fusion.view_classifier import main

    main()
