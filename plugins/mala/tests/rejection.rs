//! The checks that every plugin must pass, with proposals that are rejected at the boundary.

conformance::conformance_tests!(mala, r#"{"boundary": "reject"}"#);
