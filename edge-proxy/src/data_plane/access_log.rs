//! Step 10. (Skeleton.)
