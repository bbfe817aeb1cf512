"""Where does medical X-ray attention look? python scripts/roi_boxes.py --run_dir runs/mxa --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from extract.roi_pictures import main

    main()
