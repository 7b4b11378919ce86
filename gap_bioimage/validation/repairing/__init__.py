"""The mechanical fixes of anybody's zip."""
