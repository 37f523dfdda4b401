"""The page: a file a tab, their shared parts, and the endpoints for scripts. HTML is in templates/, CSS and JavaScript in static/."""
