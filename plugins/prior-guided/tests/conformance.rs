//! The checks that every plugin must pass.

conformance::conformance_tests!(prior_guided);
