"""One file per data set: its own tables and folders in, a manifest out."""
