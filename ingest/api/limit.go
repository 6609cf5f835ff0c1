package api

import (
	"fmt"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/time/rate"

	"github.com/postrider/postrider/schemas"
)

// maxIdleLimiters is how many limiters there may be before those that are full are dropped: a full one is as good as a new one.
const maxIdleLimiters = 10_000

// limiters hold each key to its rate, on this replica.
type limiters struct {
	// otherwise is of keys that have no limit of their own; nil: they have none.
	otherwise *schemas.RateLimit

	mu    sync.Mutex // guards the rest
	byKey map[string]*limiter
}

type limiter struct {
	policy schemas.RateLimit
	tokens *rate.Limiter
}

func newLimiters(otherwise *schemas.RateLimit) *limiters {
	return &limiters{otherwise: otherwise, byKey: make(map[string]*limiter)}
}

// limit counts a request of a key and says in the answer's headers what is left
// (draft-ietf-httpapi-ratelimit-headers-10). The admin key has no limit.
func (s *Server) limit(c *call) error {
	policy := c.who.limit
	if policy == nil {
		policy = s.limiters.otherwise
	}
	if policy == nil || c.who.id == adminID {
		return nil
	}
	at := time.Now()
	l := s.limiters.of(c.who.id, *policy, at)
	taken := l.tokens.AllowN(at, 1)
	left := max(l.tokens.TokensAt(at), 0)
	perToken := policy.Period().Seconds() / float64(policy.Count)
	header := &c.http.Response.Header
	header.Set("RateLimit-Policy", fmt.Sprintf(`"key";q=%d;w=%d`, policy.Count, int(policy.Period().Seconds())))
	header.Set("RateLimit", fmt.Sprintf(`"key";r=%d;t=%d`, int(left), wholeSeconds((float64(policy.Count)-left)*perToken)))
	if taken {
		return nil
	}
	header.Set(fasthttp.HeaderRetryAfter, strconv.Itoa(max(wholeSeconds((1-left)*perToken), 1)))
	return &requestError{
		status: fasthttp.StatusTooManyRequests, code: codeRateLimited,
		detail: fmt.Sprintf("this key may make %d requests a %s", policy.Count, policy.Per),
	}
}

func wholeSeconds(seconds float64) int { return int(math.Ceil(seconds)) }

// of returns the limiter of a key, a new one where its policy is another than before.
func (l *limiters) of(id string, policy schemas.RateLimit, at time.Time) *limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if known := l.byKey[id]; known != nil && known.policy == policy {
		return known
	}
	if len(l.byKey) >= maxIdleLimiters {
		for id, idle := range l.byKey {
			if idle.tokens.TokensAt(at) >= float64(idle.policy.Count) {
				delete(l.byKey, id)
			}
		}
	}
	perSecond := rate.Limit(float64(policy.Count) / policy.Period().Seconds())
	made := &limiter{policy, rate.NewLimiter(perSecond, policy.Count)}
	l.byKey[id] = made
	return made
}
