"""Write docs/label_maps.md again after a change of data/label_maps.py: python scripts/label_maps.py"""

if __name__ == "__main__":
    from _root import ROOT

    from data.files import atomic_write
    from data.label_map_page import page

    atomic_write(ROOT / "docs" / "label_maps.md", page())
