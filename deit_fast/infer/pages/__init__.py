"""Self-contained HTML pages: a run's report and the comparison of runs. They load nothing from any network.

page.py writes HTML, with page.css and charts.js inline; charts.py makes series of a run's metrics; on_track.py holds
them against the published curve; evaluated.py, attention.py and samples.py make what is looked at; run_folder.py reads
what a run left; report.py and compare.py put the pages together.
"""
