"""Pictures: grids and patches, and the towers that read them."""
