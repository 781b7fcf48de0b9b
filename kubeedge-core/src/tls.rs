//! Certificates on the link: reading PEM files, and who a peer is.
