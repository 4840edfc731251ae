// The benchmark that compares p2ptun with others, in a module of its own:
// `go test ./...` at the root never compiles it. The standard library alone.
module benchmark

go 1.26
