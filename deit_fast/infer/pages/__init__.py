"""Self-contained HTML pages: the report of a run and the comparison of runs. They load nothing from a network.

page.py writes HTML with page.css and charts.js inline. charts.py converts a run's metrics to series, and on_track.py
compares them with the published curve. evaluated.py, attention.py and samples.py make the parts with images.
run_folder.py reads the files of a run. report.py and compare.py compose the pages.
"""
