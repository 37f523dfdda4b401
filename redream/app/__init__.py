"""What people look at: a run as it forms, methods side by side, the library. HTML and words; widgets are app.py's."""
