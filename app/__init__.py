"""The front door: the `mechscope` command, studies that need several packages, and the explorer.

Nothing is imported here, not even `interp`: `mechscope doctor` has to run where a stranger's `interp` stands before
ours. No module in this folder may carry the name of a library: Streamlit puts the folder first on the path.
"""
