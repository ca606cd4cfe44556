"""No name in the pixels: what no header clears, or what shows text, is asked of a person."""
