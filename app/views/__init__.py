"""The explorer's screens; each file is run by `st.navigation` and calls its own `show()`."""
