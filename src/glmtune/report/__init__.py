"""The report of a run, `report.html` and `report.md`, and the comparison of several.

facts      what a run folder holds
sections   facts -> blocks, in the user's language
html, markdown   blocks -> a page
"""
