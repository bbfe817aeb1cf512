"""Stage two: fuse the views of a study or patient into one prediction."""
