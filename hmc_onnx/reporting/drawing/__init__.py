"""The pictures of the report, drawn by matplotlib as SVG whose colours are those of the page."""
