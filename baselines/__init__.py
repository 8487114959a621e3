"""One file per competitor; each talks to the engine through c2f.api alone."""
