"""Tools, output schema, runtime settings and media of a render, translated to provider parameters."""
