"""Scores, ROC curves and Grad-CAM of stage one alone: python scripts/evaluate_stage_one.py --run_dir runs/x --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from fusion.stage_one_report import main

    main()
