package proto

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"slices"
	"testing"
)

// pinnedCodes is the wire protocol: a line may be added, none changed.
var pinnedCodes = map[string]struct {
	code   Code
	number uint32
	text   string
}{
	"CodeNone":       {CodeNone, 0, "reset"},
	"CodeRefused":    {CodeRefused, 0x2101, "refused"},
	"CodeTargetDown": {CodeTargetDown, 0x2102, "service down"},
	"CodeNoService":  {CodeNoService, 0x2103, "no such service"},
	"CodeReset":      {CodeReset, 0x2104, "connection reset"},
	"CodeSilence":    {CodeSilence, 0x2105, "silent for too long"},
	"CodeClosed":     {CodeClosed, 0x2106, "closed by the owner"},
	"CodeRevoked":    {CodeRevoked, 0x2107, "access revoked"},
	"CodeStopped":    {CodeStopped, 0x2108, "node stopped"},
	"CodePeerAway":   {CodePeerAway, 0x2109, "peer away"},
	"CodeTooMany":    {CodeTooMany, 0x210a, "too many connections"},
	"CodeRestarted":  {CodeRestarted, 0x210b, "peer restarted"},
}

func TestCodeNumbersAndTextsNeverChange(t *testing.T) {
	for name, pin := range pinnedCodes {
		if uint32(pin.code) != pin.number {
			t.Errorf("%s = %#x, pinned to %#x", name, uint32(pin.code), pin.number)
		}
		if got := pin.code.String(); got != pin.text {
			t.Errorf("%s.String() = %q, want %q", name, got, pin.text)
		}
	}
}

func TestEveryCodeIsPinnedAndHasText(t *testing.T) {
	declared := declaredCodes(t)
	if pinned := slices.Sorted(maps.Keys(pinnedCodes)); !slices.Equal(declared, pinned) {
		t.Errorf("code.go declares %v, pinned are %v", declared, pinned)
	}
	if len(codeText) != len(declared) {
		t.Errorf("%d codes, %d texts", len(declared), len(codeText))
	}
	seen := map[string]Code{}
	for code, text := range codeText {
		if other, twice := seen[text]; twice || text == "" {
			t.Errorf("%#x and %#x both say %q", uint32(code), uint32(other), text)
		}
		seen[text] = code
	}
}

// declaredCodes are the names of the constants of type Code, sorted.
func declaredCodes(t testing.TB) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "code.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); ok && typ.Name == "Code" {
			for _, name := range spec.Names {
				names = append(names, name.Name)
			}
		}
		return true
	})
	return slices.Sorted(slices.Values(names))
}

func TestCodesStayClearOfLibp2p(t *testing.T) {
	for code := range codeText {
		if code != CodeNone && (code < 0x2101 || code > 0x21ff) {
			t.Errorf("%#x (%s) is outside 0x2101-0x21ff", uint32(code), code)
		}
	}
	for _, theirs := range []Code{0x1001, 0x1008, 0x1009, 1, 0xffffffff} {
		if got := theirs.String(); got != "reset by the peer's libp2p" {
			t.Errorf("Code(%#x).String() = %q", uint32(theirs), got)
		}
	}
}

func TestVerdictNumbersNeverChange(t *testing.T) {
	pinned := map[Verdict]int32{
		Verdict_VERDICT_UNKNOWN:      0,
		Verdict_VERDICT_OK:           1,
		Verdict_VERDICT_REFUSED:      2,
		Verdict_VERDICT_SERVICE_DOWN: 3,
		Verdict_VERDICT_NO_SERVICE:   4,
		Verdict_VERDICT_INVITE_USED:  5,
		Verdict_VERDICT_INVITE_OVER:  6,
		Verdict_VERDICT_INVITE_LATER: 7,
	}
	if len(pinned) != len(Verdict_name) {
		t.Errorf("%d verdicts, %d pinned", len(Verdict_name), len(pinned))
	}
	for verdict, number := range pinned {
		if int32(verdict) != number {
			t.Errorf("%s = %d, pinned to %d", verdict, verdict, number)
		}
	}
}
