"""A physics chest phantom: analytic 3-D chests, projected by Beer-Lambert into PA, AP and lateral radiographs.

`sample_patient` draws a body, `build_chest` turns it and its findings into attenuating bodies, `radiograph` makes the
picture of one view. `data.sources.phantom` writes a whole cohort in the form of MIMIC-CXR-JPG + CXR-LT 2023.
"""
