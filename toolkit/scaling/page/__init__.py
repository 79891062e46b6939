"""A study's report as one HTML file: Markdown to HTML, and the interactive twins of its figures."""
