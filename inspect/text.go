package inspect

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hibernate-go/hibernate"
)

// maxText is how many bytes of an attachment a page shows, and maxDepth how deep.
const (
	maxText  = 600
	maxDepth = 8
)

// attachment is what ws has for one, as its class decodes it.
func attachment(ws hibernate.WebSocket) (text string) {
	defer func() {
		if p := recover(); p != nil { // a codec of the user's
			text = "cannot be decoded: the codec panicked"
		}
	}()
	var v any
	ok, err := ws.DeserializeAttachment(&v)
	switch {
	case err != nil:
		return "cannot be decoded: " + err.Error()
	case !ok:
		return ""
	}
	var b bounded
	b.value(reflect.ValueOf(v), 0)
	return b.String()
}

// bounded is text that ends in an ellipsis where it would be too long.
type bounded struct {
	strings.Builder
	full bool
}

func (b *bounded) add(s string) {
	switch {
	case b.full:
	case b.Len()+len(s) <= maxText:
		b.WriteString(s)
	default:
		s = s[:maxText-b.Len()]
		for len(s) > 0 && !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
		b.WriteString(s + "…")
		b.full = true
	}
}

// value writes what a codec has decoded, much as JSON would.
func (b *bounded) value(v reflect.Value, depth int) {
	for v.IsValid() && (v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer) && !v.IsNil() {
		v = v.Elem()
		if depth++; depth > maxDepth {
			break
		}
	}
	switch {
	case b.full:
	case !v.IsValid() || (v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer) && v.IsNil():
		b.add("null")
	case depth > maxDepth:
		b.add("…")
	case v.Type() == reflect.TypeFor[time.Time]() && v.CanInterface():
		b.add(v.Interface().(time.Time).Format(time.RFC3339Nano))
	default:
		b.plain(v, depth)
	}
}

func (b *bounded) plain(v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.String:
		s := v.String()
		b.add(strconv.Quote(s[:min(len(s), maxText)]))
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			for b.add("0x"); !b.full && v.Len() > 0; v = v.Slice(1, v.Len()) {
				b.add(fmt.Sprintf("%02x", v.Index(0).Uint()))
			}
			return
		}
		b.add("[")
		for i := 0; i < v.Len() && !b.full; i++ {
			if i > 0 {
				b.add(", ")
			}
			b.value(v.Index(i), depth+1)
		}
		b.add("]")
	case reflect.Map:
		type pair struct {
			key   string
			value reflect.Value
		}
		var pairs []pair
		for k, e := range v.Seq2() {
			pairs = append(pairs, pair{fmt.Sprint(k), e})
		}
		slices.SortFunc(pairs, func(x, y pair) int { return strings.Compare(x.key, y.key) })
		b.add("{")
		for i, p := range pairs {
			if b.full {
				return
			}
			if i > 0 {
				b.add(", ")
			}
			b.add(p.key[:min(len(p.key), maxText)] + ": ")
			b.value(p.value, depth+1)
		}
		b.add("}")
	default:
		b.add(fmt.Sprint(v))
	}
}

// ago is how long before now t was, in words.
func ago(now, t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := now.Sub(t)
	switch {
	case d < -time.Second:
		return "in " + span(-d)
	case d < time.Second:
		return "now"
	}
	return span(d) + " ago"
}

// span is d in its largest unit, or two of them.
func span(d time.Duration) string {
	d = d.Truncate(time.Second)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", d/time.Minute, d%time.Minute/time.Second)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

// took is a duration to three digits.
func took(d time.Duration) string {
	switch {
	case d < 0:
		return "longer"
	case d == 0:
		return "0"
	case d < time.Millisecond:
		return fmt.Sprintf("%.3g µs", float64(d)/1e3)
	case d < time.Second:
		return fmt.Sprintf("%.3g ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.3g s", d.Seconds())
}

// number is n with its thousands apart.
func number(n any) string {
	s := fmt.Sprint(n)
	sign := ""
	if strings.HasPrefix(s, "-") {
		sign, s = "-", s[1:]
	}
	var b strings.Builder
	for i, c := range s {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteRune('\u202f') // narrow, and no line ends there
		}
		b.WriteRune(c)
	}
	return sign + b.String()
}

// short is the beginning of an id.
func short(id hibernate.ID) string { return id.String()[:12] + "…" }

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return number(n) + " " + word + "s"
}
