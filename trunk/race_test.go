//go:build race

package trunk

// raceEnabled: the race detector makes bytes some ten times as dear.
const raceEnabled = true
