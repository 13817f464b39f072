"""A small HTTP server: what colo tells to browsers and to those who gather figures."""
