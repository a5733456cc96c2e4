"""What an RNA is: letters, structures, coordinates, records, and the files that hold them.

Standard library and NumPy at import; gemmi and pyarrow are imported by the functions that need them.
"""
