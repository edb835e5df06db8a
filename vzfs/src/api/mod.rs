//! Requests and replies of the control interface.
