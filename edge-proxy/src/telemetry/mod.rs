//! Log format; every metric family, named once. (Skeleton.)
