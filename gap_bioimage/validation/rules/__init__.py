"""Rules of the programs that read bioimage.io models: one module per consumer, all of them imported by the registry."""
